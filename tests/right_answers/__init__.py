"""Right solutions other than those in notebooks/solutions; every check must let them pass."""
