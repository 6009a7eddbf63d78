"""The HTTP service: OpenAI's chat API over a memory bank, the bank itself, and one page.

`settings.py` says what may be set, `app.py` puts the parts together, `running.py` runs them. A
question goes `chat.py` → `asking.py` (batches on the model), a document `memories.py` →
`learning.py` (one pass between two batches).
"""

from cmt.server.app import create_app
from cmt.server.settings import Settings

__all__ = ["Settings", "create_app"]
