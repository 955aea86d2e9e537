"""Problems and prompts: datasets and generated tasks as a resumable stream of tokenized prompts."""
