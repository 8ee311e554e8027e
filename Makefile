# make                 everything, from a raw crawl to a chat with a model trained before your eyes
# make rl              reinforcement learning: on exercises, and on a reward model that gets gamed
# make TEXT=my.txt     tokenizer, pretraining and a sample on a text of your own, in out/text/
# make pictures        the drawings of the README, from your own run
# make test            runs the tests
# make bench           the speeds, measured against other programs (installs them: PyTorch is large)
# make clean           deletes out/ with all data and models
# make skips finished stages and resumes train.py and sft.py; make rl and make TEXT= start anew.
# Each stage is also one plain command: see the README.
PYTHON ?= python3
RUN = .venv/bin/python

all: .venv/ready $(if $(TEXT),text,chat)

# $(call stage,what happens and why,command): says it, runs it, notes the seconds it took. The trap
# lets the shell outlive Ctrl-C, so that the seconds before it are noted too.
define stage
	@printf '\n== %s\n' "$(1)"
	@mkdir -p out; trap : INT; start=$$(date +%s); $(RUN) $(2); status=$$?; \
	echo $(2) $$(( $$(date +%s) - start )) s >> out/times.txt; [ $$status = 0 ] || \
	{ echo "make: $(firstword $(2)) did not finish; its last lines say why."; exit 1; }
endef
# Nothing, or --resume where a run in that folder was interrupted.
resume = $(if $(wildcard $(1)/.done),,$(if $(wildcard $(1)/state.json),--resume --out $(1)))

chat: out/sft/.done
	$(call stage,the run as one page to keep; and in one table,look.py --report)
	@echo 'talk to it:          $(RUN) sample.py --chat'
	@echo 'look at it:          $(RUN) look.py'
	@echo 'let it learn more:   make rl'

out/world/facts.jsonl:
	$(call stage,an invented island as a web crawl: to check what a model learned one must know all it read,world.py)

out/docs/stats.json: out/world/facts.jsonl
	$(call stage,the crawl becomes clean text: most of the web is not worth reading,data.py)

out/tokenizer.json: out/docs/stats.json
	$(call stage,text becomes tokens: a network reads numbers,bpe.py)

out/base/.done: out/tokenizer.json
	$(call stage,pretraining: predict the next token; facts and grammar follow from that,train.py $(call resume,out/base))
	@touch $@
	$(call stage,what a base model is: it continues texts,sample.py --model out/base --demo dreams)

out/sft/.done: out/base/.done
	$(call stage,supervised fine-tuning: from conversations it learns to answer,sft.py $(call resume,out/sft))
	@touch $@

rl: .venv/ready out/sft/.done
	$(call stage,RL on exercises: it finds out that thinking first pays,rl.py)
	$(call stage,a model that guesses and sometimes doubts its guess,sft.py --base out/sft --data out/world/doubt.jsonl --mix-lengths --epochs 1 --lr 5e-4 --muon-lr 0 --pages none --out out/sft-doubt)
	$(call stage,RL from there: it learns to doubt,rl.py --doubt)
	$(call stage,the same with thoughts forbidden: there is nothing to learn,rl.py --silent)
	$(call stage,RL on a learned reward model: the score rises and the jokes get worse,rl.py --reward model)
	$(call stage,the same with a KL penalty,rl.py --reward model --kl 0.1)

# In a folder of its own, so that it meets no other run's facts or models.
text: .venv/ready
	$(call stage,text becomes tokens,bpe.py "$(TEXT)" --out out/text)
	$(call stage,pretraining,train.py --tokens out/text/tokens --tokenizer out/text/tokenizer.json --facts none --out out/text/base)
	$(call stage,a sample,sample.py --model out/text/base --prompt "The")

pictures: .venv/ready
	$(RUN) look.py --pictures pictures

test: .venv/ready
	$(RUN) -m pytest

bench: .venv/ready
	.venv/bin/pip install -q -e '.[test,peers]'
	$(RUN) tests/bench.py

# The version is checked first, and --clear replaces an environment made by another Python.
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "make: Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install -q -e '.[test]'
	touch .venv/ready

clean:
	rm -rf out

.PHONY: all chat rl text pictures test bench clean
