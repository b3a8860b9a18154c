"""What a choice will cost and lose before it is made, by a latency table and by what its parts lose one by one."""
