"""What can be trained: tasks, and the registry of them."""
