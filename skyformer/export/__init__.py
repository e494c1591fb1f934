"""`export`: a trained model as a small checkpoint or as a `torch.export` program."""
