"""What every service of the mesh shares: messages, errors, settings, geometry and the store. Imports none of them."""
