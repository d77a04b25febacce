"""Keep the current folder out of the places where Python looks for modules; imports nothing else.

``python -m`` puts it first: a ``torch.py`` that lies beside somebody's corpus would be executed in
place of torch. What Python itself loads before it comes here (``runpy``) is not ours to guard.
"""

import os
import sys


def leave_out_current_folder(package_file: str) -> None:
    """Drop it, before anything else is imported, unless this package was found there.

    Args:
        package_file: ``__file__`` of a module directly in the package that runs as ``__main__``.
    """
    if not sys.path or not os.path.isdir(sys.path[0]):
        return
    found_here = os.path.dirname(os.path.dirname(package_file)) == sys.path[0]
    if os.path.samefile(sys.path[0], os.curdir) and not found_here:
        del sys.path[0]
