"""The demo: four processes train against a local Hub, are killed, lose their machine, and nothing but its last seconds.

| module | responsibility |
|---|---|
| `story` | what happens, in order, what is shown of it, and what counts as a failure |
| `stage` | the folder, and the processes: the Hub, the four ranks, the uploader, a follower; all end with it |
| `training` | one rank: a small network on scikit-learn's handwritten digits, and what it logs |
| `verdict` | the result: the oracle, a table, and commands to look at the run |

`hf-mpwriter demo` calls `story.run`.
"""
