"""Pictures of diffusion: how data turn to noise and back. Each carries the recipe it was made by."""
