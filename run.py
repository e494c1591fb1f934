"""Train, evaluate, predict, and all around it: `python run.py fit --config configs/pathfinder.yaml`."""

from skyformer.__main__ import main

if __name__ == "__main__":
    main()
