"""What protection of a whole machine costs: records of how long the same work takes, and what they are worth."""
