"""Two built source trees of rnnext against each other, on this machine: their bits, their times."""
