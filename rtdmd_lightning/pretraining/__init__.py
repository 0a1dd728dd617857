"""Training the toy world's teacher, autoencoder and CLIP."""
