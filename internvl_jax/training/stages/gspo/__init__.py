"""GSPO: rollouts, their rewards, and the steps that are made of them."""
