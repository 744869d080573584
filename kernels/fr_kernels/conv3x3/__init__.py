"""The additions that a picture still awaits where no norm follows to make them."""
