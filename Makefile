# The commands of this project. Each works as the first one ever run on a Debian machine: what is missing is
# bootstrapped into ${XDG_CACHE_HOME:-~/.cache}/dm-remap (scripts/toolchain, scripts/kernel, scripts/vm).
#
# The kernel build reads Kbuild, not this file.

MAKEFLAGS += --no-print-directory

.PHONY: all module tools demo test test-host test-vm bench soak fuzz lint upstream deb install install-tools rust-analyzer clean

all: module

ifdef KDIR
# Against a prepared tree of the user's, with the user's compilers.
build := $(CURDIR)/build/kdir
module:
	@test -e "$(KDIR)/rust/libkernel.rmeta" || { \
		echo "KDIR=$(KDIR) has no Rust artefacts (rust/libkernel.rmeta), as header packages leave them out." >&2; \
		echo "Prepare a tree from the kernel's source: its .config with CONFIG_RUST=y, then 'make rustavailable" \
			"prepare modules_prepare', then its Module.symvers (build_stock in scripts/kernel does this);" \
			"or run make without KDIR, which builds for Debian's newest kernel." >&2; \
		exit 1; }
	@mkdir -p $(build)
	$(MAKE) -C "$(KDIR)" M=$(CURDIR) MO=$(build) modules
else
build := $(CURDIR)/build/stock
module:
	@scripts/build stock
endif

# dmremap, its manual pages and shell completions, in build/tools/.
tools:
	@scripts/build tools

# The main job from start to end, told to a person.
demo:
	@scripts/build stock
	@scripts/build tools
	@scripts/vm --kernel stock tests/demo.sh

test:
	@scripts/test all

test-host:
	@scripts/test host

# T="name...": these scenarios of tests/vm; name-KERNEL (stock, previous, debug, ...): on that kernel. VMS=n: so many machines at once. ALL=1: also the long runs.
test-vm:
	@scripts/test vm $(T)

# What I/O and entries cost in instructions, and throughput on several CPUs: build/bench.json, build/hot-path.svg and tables, in 10 minutes.
# BASELINE=1: instead makes tests/bench/baseline.json anew, which `make test` compares with, in 1 minute.
bench:
	@scripts/bench $(if $(BASELINE),baseline)

# What takes too long for every day, some hours under emulation: scenarios in their long forms and on more kernels; the machine
# is killed at a random moment, CUTS=n times (default 100); data races, on a kernel of their own (10 minutes more to build);
# that the tests notice mistakes in the order of writes and in teardown; the module built by DKMS; src/dm/ built in the kernel's
# tree; a whole Debian, with its root on a remap device, across a kernel upgrade, by dracut, too, and with the power failing at any moment.
soak:
	@SOAK=$(or $(CUTS),100) ALL=1 scripts/test vm power churn stress deadlocks cycles-stock writers memory each-fault replay hide million straddle \
		monitor scrub files files-f2fs faults-main-stock faults-slot-stock faults-metadata-stock lifecycle-debug lifecycle-previous sample-debug \
		slow-teardown-debug spare-gone-debug kunit-race
	@tests/mutations/run
	@scripts/deb check-dkms
	@scripts/upstream
	@ALL=1 scripts/test vm distro-data distro-root distro-reboots distro-kinds distro-see distro-watch

# T=name: one target of tests/fuzz. RUNS=n: executions of each (default 10 million: half an hour).
fuzz:
	@scripts/fuzz $(T)

lint:
	@scripts/lint

# src/dm/ as a patch series for the kernel, in build/upstream/ (docs/upstream.md). QUICK=1: without building it;
# K=previous: for that kernel series.
upstream:
	@scripts/upstream $(if $(QUICK),--quick) $(K)

# Debian packages, in build/deb/ (docs/packaging.md).
deb:
	@scripts/deb

# Into the running kernel's modules, where modprobe and device-mapper find it; DESTDIR= for elsewhere.
install: module
	@release=$$(tr '\0' '\n' <$(build)/dm-remap.ko | sed -n 's/^vermagic=\([^ ]*\).*/\1/p') && \
	if [ "$$release" != "$$(uname -r)" ] && [ -z "$(DESTDIR)" ]; then \
		echo "the module is for $$release, and this machine runs $$(uname -r): build with KDIR=" >&2; exit 1; fi && \
	install -D -m 644 $(build)/dm-remap.ko "$(DESTDIR)/lib/modules/$$release/updates/dm-remap.ko" && \
	depmod $(if $(DESTDIR),-b "$(DESTDIR)") "$$release" && echo "installed for $$release"
	@$(MAKE) install-tools

PREFIX ?= /usr/local
install-tools: tools
	@share="$(DESTDIR)$(PREFIX)/share" && \
	install -D build/tools/dmremap "$(DESTDIR)$(PREFIX)/sbin/dmremap" && \
	install -D -m 644 -t "$$share/man/man8" build/tools/man/*.8 && \
	install -D -m 644 -t "$$share/man/man5" build/tools/man/*.5 && \
	install -D -m 644 build/tools/dmremap.bash "$$share/bash-completion/completions/dmremap" && \
	install -D -m 644 build/tools/dmremap.zsh "$$share/zsh/site-functions/_dmremap" && \
	install -D -m 644 build/tools/dmremap.fish "$$share/fish/vendor_completions.d/dmremap.fish" && \
	echo "installed $(DESTDIR)$(PREFIX)/sbin/dmremap"

rust-analyzer:
	@scripts/build stock rust-analyzer
	@sed "s#\"/usr/#\"$$(scripts/toolchain path)/usr/#" build/stock/rust-project.json >rust-project.json

clean:
	rm -rf build tests/fuzz/artifacts rust-project.json
