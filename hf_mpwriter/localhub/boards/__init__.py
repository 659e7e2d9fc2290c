"""TensorBoard on the head of a repository, started by the first visit of its page and ended with the Hub.

| module | responsibility |
|---|---|
| `checkout` | the event files of a commit in a directory, in which files only grow |
| `board` | one TensorBoard: a child process on loopback that answers to this Hub only |
| `registry` | at most so many boards, one per repository |
| `__main__` | the child process |

`pages.metrics` asks `registry` for a board and passes requests on to it.
"""
