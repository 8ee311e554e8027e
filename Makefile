# make                 everything, from a raw crawl to a chat with a model trained before your eyes
# make rl              practice behind it: learn to think, to doubt, and to fool a judge (6 minutes)
# make TEXT=my.txt     tokenizer, pretraining and a sample on a text of your own
# make test            the proofs
# make bench           the speeds, measured against other programs (installs them: PyTorch is large)
# make clean           forgets what was made in out/
# Each stage can also be run alone: see the README.
PYTHON ?= python3
RUN = .venv/bin/python

all: .venv/ready
ifdef TEXT
	$(RUN) bpe.py "$(TEXT)"
	$(RUN) train.py
	$(RUN) sample.py --prompt "The"
else
	$(RUN) world.py
	$(RUN) data.py out/world/crawl.warc.gz
	$(RUN) bpe.py --digits 1
	$(RUN) train.py
	$(RUN) sample.py --demo dreams
	$(RUN) sft.py
	@echo 'now talk to it:  .venv/bin/python sample.py --chat      and let it practise:  make rl'
endif

rl: .venv/ready
	$(RUN) rl.py
	$(RUN) rl.py --doubt
	$(RUN) rl.py --silent
	$(RUN) rl.py --reward model
	$(RUN) rl.py --reward model --kl 0.1

test: .venv/ready
	$(RUN) -m pytest

bench: .venv/ready
	.venv/bin/pip install -q -e '.[test,peers]'
	$(RUN) tests/bench.py

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[test]'
	touch .venv/ready

clean:
	rm -rf out

.PHONY: all rl test bench clean
