"""What every stage optimises, and where its batches come from."""
