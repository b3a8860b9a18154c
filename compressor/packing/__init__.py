"""The file that travels: a model packed to a fraction of its size, and the reader that gives its very bytes back."""
