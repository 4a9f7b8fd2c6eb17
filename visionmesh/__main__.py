"""`python -m visionmesh`: the command line."""

from visionmesh.cli import main

if __name__ == "__main__":
    main()
