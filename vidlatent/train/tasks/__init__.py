"""One file for each thing that is trained, readable from top to bottom; ``base`` says what each
has to offer, and what stands beside them in ``train`` is one idea a file."""
