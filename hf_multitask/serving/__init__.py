"""The server: requests of all clients in one pass of the backbone. It needs the extra ``serve``, once it is started."""

from .settings import Settings, check_extra
from .supervision import serve

__all__ = ["Settings", "check_extra", "serve"]
