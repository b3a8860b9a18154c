"""What inputs are, by their content and their code: equal digests in every process, others for whatever was changed."""
