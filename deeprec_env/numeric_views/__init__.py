"""What a policy in numbers sees of an episode, and the texts that its actions stand for."""
