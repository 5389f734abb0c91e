"""Result records: what a measurement says, how it reaches the disk whole, and how it comes back."""
