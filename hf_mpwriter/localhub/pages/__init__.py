"""The pages of the Hub for a browser, rendered on the server, under the addresses of the real Hub.

    /                                            all repositories
    /me/run                                      the model card
    /me/run/tree/main/tensorboard                files, each with the commit that changed it last
    /me/run/blob/main/README.md                  one file
    /me/run/commits/main, /me/run/commit/<id>    the history, and what one commit changed
    /me/run/tensorboard                          "Training metrics": TensorBoard on the head of `main`

Datasets and spaces have their prefix, `/datasets/me/data`. There is no script in these pages, and the policy that they
carry lets no browser run one; TensorBoard brings its own policy.

| module | responsibility |
|---|---|
| `handlers` | one function per page, templates and headers; Markdown of others as safe HTML; addresses |
| `boards`, `board_process` | the TensorBoard of a repository: a child process that answers to this Hub only |

The templates and the style are in `templates/`.
"""
