"""What `bench --gpu` and `bench --counts` are made of."""
