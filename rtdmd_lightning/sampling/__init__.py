"""The few-step sampler and the rollouts that it makes."""
