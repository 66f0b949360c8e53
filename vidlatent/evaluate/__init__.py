"""The mode ``eval``: scores of tokenizers and generators, and the pages that show them."""
