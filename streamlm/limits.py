"""How much is read from what others wrote, by topic: past a bound, one line says which and what to do."""

# Configs
CONFIG_BYTES = 2**18  # of a config file; the project's own has 5 KB, and YAML is read at 200 KB a second
CONFIG_VALUES = 20_000  # of a config file, with what its aliases repeat; the project's own has 300
CONFIG_DEPTH = 20  # sections and lists inside one another; the project's own has 5
NUMBER_LETTERS = 40  # of a number in a config
LIST_ITEMS = 100  # of a list in a config; each is a job or more
NAMES = 1_000  # under `models`, and under `corpora`
TOKENS = 10**12  # of a text or a cache; a window of as many is how all of a text is asked for
REPEATS = 1_000_000  # of what is timed; at 1 ms each, a quarter of an hour
RESAMPLES = 100_000  # of a bootstrap; 2,000 are usual, and more than these no longer change an interval
SEED = 2**63 - 1  # what torch and numpy both take
TITLE_LETTERS = 255  # of the name of a model or a text, which may be that of a file
PRESS_LETTERS = 100  # of a press with its arguments; file names contain it
PRESS_NUMBER = 1_000_000  # of an argument of a press: no context is longer

# Records
RECORD_BYTES = 64 * 2**20  # the longest, along 4 million tokens, has 6 MiB
RECORD_DEPTH = 32  # of lists and objects in each other; records have 8
RECORD_INT = 2**63 - 1  # of any count
CHECKPOINT_BYTES = 2**42  # dense, 4 million tokens of Llama-2-70B take 1.3e12
SAVED_CACHE_BYTES = 2**42  # likewise
BOOTSTRAP_DRAWS = 10**9  # blocks in all resamples that `verify` draws; 4 million losses take 6e7

# How tokens are drawn: beyond these, float32 has no such number or every token is alike
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-8, 1e4  # 0 apart; 0.2 to 1.5 are usual, some models say 1e-6
MIN_TOP_P = 1e-6
MIN_PENALTY, MAX_PENALTY = 0.01, 100  # 1 to 1.3 are usual

# Texts and archives
TEXT_BYTES = 8 << 30  # of one text, archive or compressed export, expanded; corpora of 4 GB are common
EXPANSION = 100  # expanded bytes per compressed one; prose reaches 10, a bomb 1,000 and more
EXPANDED_BYTES = 64 << 20  # that a small file may expand to, whatever its ratio
ARCHIVE_MEMBERS = 100_000  # files in an archive; the largest packages have some 10,000
PROMPTS_BYTES = 64 << 20  # of a file of prompts, which are held together
LINE_BYTES = 64 << 20  # of a line that is piped into a chat
PAGE_BYTES = 16 << 20  # of a page's XML in a MediaWiki export; its text has 2 MiB at most
ARTICLE_SECONDS = 30  # of computing time for one article of MediaWiki; the longest lists, of 2 MB, take 10
QUIET_PIPE_SECONDS = 5  # without a first byte, until a line says what is waited for
ARCHIVE_HEADER_BYTES = 16 << 20  # of the list of files in a zip, or one header of a tar

# Hubs
HUB_MODEL_GB = 200  # files of a model; 70 billion numbers in bfloat16 are 140 GB; `max_gb` raises it
HUB_TEXT_GB = 5  # files of a text, and its characters, which are held in memory; `max_gb` raises it
HUB_LISTING_REQUESTS = 2_000  # of a fetch; a page of huggingface.co has 1,000 files
HUB_LISTING_ENTRIES = 1_000_000  # files and folders in all pages
HUB_LISTING_BYTES = 64 * 2**20  # a page; a data set of 100,000 files has about 10 MB on its first
HUB_REFUSAL_BYTES = 2**20  # the body of an error or of a redirect, which is a sentence
HUB_PATH_CHARS = 1_024  # a path or pattern of files in a repository
HUB_ANY_FOLDERS = 2  # `**` in a pattern: each one more multiplies the time by the depth of the folders
HUB_BATCH_ROWS = 16  # rows of a text in memory at once: one can have a gigabyte, compressed to nothing
HUB_BUFFER_BYTES = 2**20  # read ahead in a column of a text: without it a whole row group is read
HUB_CARD_BYTES = 4 * 2**20  # a data set's card, which YAML reads at about 0.1 MB/s; large ones have 0.5 MB
HUB_RETRY_AFTER_S = 600  # huggingface.co counts requests over five minutes
HUB_PATIENCE_S = 60  # waiting for a file, before its speed is judged
HUB_SLOWEST_BYTES_S = 1_000  # a slow modem brings three times as many

# Models
JSON_BYTES = 2**24  # of a config: the largest known, with labels or settings of each layer, have 2 MB
JSON_DEPTH = 64  # levels of objects and lists; configs have 6
WEIGHT_INDEX_BYTES = 2**26  # of model.safetensors.index.json: 90,000 tensors of DeepSeek-V3 take 9 MB
TOKENIZER_BYTES = 2**28  # of one file of a tokenizer: the largest known have 40 MB
MODEL_SIZE = 2**22  # of a number that sizes a model: vocabularies have 300,000, layers and heads far fewer
SPARE_ELEMENTS = 2**26  # beyond twice those in the files that a model may have: masks that it makes itself
SPARE_TENSORS = 1024  # likewise, beyond four times those in the files
GGUF_HEADER_BYTES = 2**28  # with the vocabulary, 20 MB at most in known files
GGUF_KEYS = 2**14  # known files have 60
GGUF_ITEMS = 2**22  # in all arrays: a vocabulary of 300,000 with scores, types and merges has 1,500,000
GGUF_TENSORS = 2**16  # known files have 2,000
TEMPLATE_SECONDS = 10  # of a chat template for one conversation; it takes milliseconds
TEMPLATE_CHARACTERS = 2**20  # that it may add to a conversation; system prompts have 10,000
TEMPLATE_REPEATS = 16  # times that it may write a conversation

SENTENCE_TOKENS = 256  # of an attention map, whose record has a number for each two of them
YARN = 1_000  # times that positions are stretched; released models have up to 128

STREAM_LINES = 127  # of StreamEval, one for each of its words
TWIN_LAYERS = 100  # of a model that is trained here, and heads of a layer; the default has 4
TWIN_SIZE = 8_192  # its hidden size, its context and its batch; the default has 128, 128 and 16

WATCH_TOKENS = 2_000  # on a page of `watch`, which has a share for each token that each of them sees

# Prompts
BATCH_TOKENS = (
    16_384  # of all rows in a pass over prompts; in their cache, where its bytes are not known before
)
BATCH_ROWS = 256  # that are written together; more of them no longer give more tokens per second
BATCH_SHARE = 0.25  # of the memory that is there, for their keys and values: as much again when a row leaves
