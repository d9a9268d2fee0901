"""``python -m dmlbench``."""

from dmlbench.cli.main import main

if __name__ == "__main__":
    main()
