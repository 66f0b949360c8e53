"""Networks: tokenizers, generators, discriminators and pretrained ones."""
