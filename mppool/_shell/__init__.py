"""The command `mppool`: what an operator sees of the managers of this user, and tells them."""
