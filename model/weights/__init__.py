"""Read and write weights in the formats of this project, the paper's code, and transformers."""
