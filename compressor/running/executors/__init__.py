"""Where tasks are worked: in this process, in several on this machine, or on a cluster; one protocol for all."""
