"""What the torch adapters share: scorers and the one crossing between host and device."""
