import sys

from lxcfs_py.cli import main

sys.exit(main())
