# weightfs. `make help` lists the targets, README.md explains the first two.
#
# Nothing here needs a compiler or pkg-config to be parsed: `run` and `test`
# begin with tools/setup.sh, which installs them, and then call make again.

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
VERSION := 0.1.0

# ---- what is built ----

LIB_SRC := $(wildcard lib/*.c)
PROG_SRC := $(wildcard fs/*.c) $(filter-out tools/sample_%.c,$(wildcard tools/*.c))
SAMPLE_SRC := $(wildcard tools/sample_*.c) tools/ui.c
UNIT_SRC := $(wildcard tests/unit/test_*.c)
UNIT_SUPPORT := $(wildcard tests/unit/support.c)
FAULT_SRC := $(wildcard tests/faults/*.c)
VERDICT_SRC := $(wildcard tests/unit/*_cli.c)
BENCH_SRC := $(wildcard tests/bench/*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_NAMES := $(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRC))
ALL_SRC := $(LIB_SRC) $(PROG_SRC) $(SAMPLE_SRC) $(UNIT_SRC) $(UNIT_SUPPORT) $(FAULT_SRC) $(VERDICT_SRC) $(BENCH_SRC) \
	$(FUZZ_SRC)

comma := ,
obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
LIB := $(BUILD)/libweightfs.a
UNIT_BIN := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(UNIT_SRC)) $(BUILD)/tests/test_faults
FAULT_LIB := $(BUILD)/tests/faults.so
VERDICT_BIN := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(VERDICT_SRC))
BENCH_BIN := $(addprefix $(BUILD)/bench-,worker probe store)
SCHEMA_H := $(BUILD)/gen/schema_sql.h
VENV := build/venv

# ---- flags ----

# The libraries are looked for once, and only by goals that compile here.
NO_LIBS := run test test-long test-all mutations bench asan tsan fuzz coverage check analyze uninstall clean distclean help deps
NEED_LIBS := $(filter-out $(NO_LIBS),$(or $(MAKECMDGOALS),all))
PKGS := fuse3 jansson libxxhash sqlite3
PKG_CONFIG ?= pkg-config
ifneq ($(NEED_LIBS),)
MISSING := $(shell for p in $(PKGS); do \
	$(PKG_CONFIG) --exists "$$p" >/dev/null 2>&1 || echo "$$p"; done)
ifneq ($(MISSING),)
$(error pkg-config does not find: $(MISSING). Run "make deps" to install what weightfs is built with)
endif
PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PKGS))
PKG_LIBS := $(shell $(PKG_CONFIG) --libs $(PKGS))
endif

BASE_CPPFLAGS := -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DWFS_VERSION='"$(VERSION)"' \
	-I. -I$(BUILD)/gen $(PKG_CFLAGS)
BASE_CFLAGS := -std=gnu11 -O2 -g -pthread -fstack-protector-strong
BASE_LDFLAGS := -pthread
WARN := -Wall -Wextra

ifdef SANITIZE
BASE_CFLAGS += -O1 -fno-omit-frame-pointer -fsanitize=$(SANITIZE)
ifneq ($(findstring undefined,$(SANITIZE)),)
BASE_CFLAGS += -fno-sanitize-recover=undefined
endif
BASE_LDFLAGS += -fsanitize=$(SANITIZE)
else
# What the compiler does not know is left out: _FORTIFY_SOURCE=3 is of gcc 12, and taken for 2 before.
HARDEN := $(if $(NEED_LIBS),$(foreach f,-fstack-clash-protection -fcf-protection,$(shell \
	$(CC) -Werror $(f) -E -x c /dev/null >/dev/null 2>&1 && echo $(f))))
BASE_CPPFLAGS += -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3
BASE_CFLAGS += -fPIE $(HARDEN)
BASE_LDFLAGS += -pie -Wl,-z,relro,-z,now
endif

# Counted by several threads, in drivers that their users may be: the counters are written by whoever ends.
ifdef COVERAGE
BASE_CPPFLAGS += -DWFS_COVERAGE
BASE_CFLAGS += -O0 --coverage -fprofile-update=atomic
BASE_LDFLAGS += --coverage
endif

ifdef DEVELOPER
WARN += -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wvla \
	-Wpointer-arith -Wwrite-strings -Wundef -Wformat=2 -Wnull-dereference \
	-Wmissing-declarations -Wredundant-decls -Wnested-externs -Wimplicit-fallthrough -Wdate-time
endif

COMPILE = $(CC) $(BASE_CPPFLAGS) $(BASE_CFLAGS) $(WARN) $(CPPFLAGS) $(CFLAGS)
LINK = $(CC) $(BASE_CFLAGS) $(CFLAGS) $(BASE_LDFLAGS) $(LDFLAGS)

ifndef V
say = @printf '  %-4s %s\n' $(1) $(2);
endif

# ---- targets ----

.DEFAULT_GOAL := all
.PHONY: all run test test-long test-all test-here unit valgrind check analyze coverage mutations bench asan tsan install \
	uninstall clean distclean help deps FORCE
.DELETE_ON_ERROR:

all: $(BUILD)/weightfs $(LIB) $(BUILD)/sample-model ## build the command, the library and the sample model's writer

run: ## set up, build, mount a store and save a sample model into it twice (MODEL=dir: your own model)
	@sh tools/setup.sh build
	@$(MAKE) --no-print-directory all
	@BUILD='$(BUILD)' sh tools/demo.sh start $(if $(MODEL),'$(MODEL)')

test: ## set up, build, run every test
	@sh tools/setup.sh test
	@$(MAKE) --no-print-directory test-here

test-long: ## the tests that take minutes, which `test` leaves out
	@sh tools/setup.sh test
	@$(MAKE) --no-print-directory PYTEST_ARGS='--long -m long $(PYTEST_ARGS)' test-here

test-all: ## check, analyze, fuzz, test, test-long, asan and tsan, one after the other
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory analyze
	@$(MAKE) --no-print-directory fuzz
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-long
	@$(MAKE) --no-print-directory asan
	@$(MAKE) --no-print-directory tsan

bench: ## time weightfs against the disk, bindfs and backup programs (BENCH_ARGS: see tests/bench/bench.py)
	@sh tools/setup.sh bench
	@$(MAKE) --no-print-directory all bench-programs
	@WEIGHTFS_BUILD='$(BUILD)' '$(VENV)/bin/python' tests/bench/bench.py --write $(BENCH_ARGS)

.PHONY: bench-programs
bench-programs: $(BENCH_BIN)

asan: ## all tests on a build with address and undefined behaviour sanitizers
	@sh tools/setup.sh test
	@$(MAKE) --no-print-directory BUILD=build/asan SANITIZE=address,undefined test-here

tsan: ## all tests on a build with the thread sanitizer
	@sh tools/setup.sh test
	@UNIT_SECONDS=1800 $(MAKE) --no-print-directory BUILD=build/tsan SANITIZE=thread test-here

fuzz: ## each fuzz target for FUZZ_SECONDS, by clang and libFuzzer (FUZZ: which; FUZZ_SECONDS=3600: a long run)
	@sh tools/setup.sh fuzz
	@$(MAKE) --no-print-directory BUILD=build/fuzz CC=clang SANITIZE=fuzzer-no-link,address,undefined \
		fuzz-programs
	@sh tests/fuzz/run.sh build/fuzz '$(or $(FUZZ),$(FUZZ_NAMES))' '$(FUZZ_SECONDS)'

coverage: ## which lines and branches of lib/ and fs/ the tests run
	@sh tools/setup.sh coverage
	@find build/coverage -name '*.gcda' -delete 2>/dev/null || :
	@WEIGHTFS_FAULTS=$(or $(WEIGHTFS_FAULTS),places) UNIT_SECONDS=1800 \
		$(MAKE) --no-print-directory BUILD=build/coverage COVERAGE=1 test-here || echo 'some tests failed: see above'
	@sh tests/coverage.sh build/coverage

FUZZ_SECONDS ?= 10
FUZZ_BIN := $(FUZZ_NAMES:%=$(BUILD)/fuzz-%)

.PHONY: fuzz fuzz-programs
fuzz-programs: $(FUZZ_BIN)

# The tests of this build, without any setting up. PYTEST_ARGS goes to pytest.
test-here: all unit-programs bench-programs
	@BUILD='$(BUILD)' VENV='$(VENV)' SANITIZE='$(SANITIZE)' sh tools/run_tests.sh $(UNIT_BIN)

unit: unit-programs ## only the tests of lib/, which need no mount
	@BUILD='$(BUILD)' SANITIZE='$(SANITIZE)' sh tools/run_tests.sh --unit $(UNIT_BIN)

VALGRIND := valgrind --quiet --error-exitcode=99 --leak-check=full --show-leak-kinds=definite,indirect \
	--errors-for-leak-kinds=definite,indirect --track-fds=yes --child-silent-after-fork=yes --num-callers=25 \
	--suppressions=tests/unit/valgrind.supp

valgrind: unit-programs ## the tests of lib/ under memcheck: bytes, leaks, descriptors
	@BUILD='$(BUILD)' UNIT_SECONDS=3600 UNIT_UNDER='$(VALGRIND)' \
		sh tools/run_tests.sh --unit $(filter-out %/test_faults,$(UNIT_BIN))

.PHONY: unit-programs
unit-programs: $(UNIT_BIN) $(VERDICT_BIN) $(FAULT_LIB)

mutations: ## small wrong changes of lib/ and fs/: does the suite notice each? Takes hours (MUTATIONS_ARGS: see tests/mutations/run.py)
	@sh tools/setup.sh test
	@'$(VENV)/bin/python' tests/mutations/run.py $(MUTATIONS_ARGS)

check: ## layers, file lengths, static analysis
	@sh tests/check_layers.sh
	@sh tests/check_lengths.sh
	@sh tests/check_static.sh

analyze: ## static analysis that takes minutes: clang-tidy and gcc -fanalyzer
	@sh tools/setup.sh analysis
	@BUILD='$(BUILD)' sh tests/check_analysis.sh

deps: ## install what weightfs is built and tested with
	@sh tools/setup.sh test

# The pure parts alone are for other programs: lib/weightfs.h and what it includes. Its headers
# name each other "lib/x.h", so they keep that directory.
PUBLIC_HEADERS := $(addprefix lib/,$(addsuffix .h,base dtype err npy safetensors shard_index \
	shard_name shard_plan size_text))
INCLUDE := $(DESTDIR)$(INCLUDEDIR)/weightfs
PC := $(DESTDIR)$(LIBDIR)/pkgconfig/weightfs.pc

install: all ## install the command, the library and its headers into DESTDIR/PREFIX
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/share/man/man1' '$(INCLUDE)/lib' \
		'$(DESTDIR)$(LIBDIR)/pkgconfig'
	install -m 755 '$(BUILD)/weightfs' '$(DESTDIR)$(PREFIX)/bin/weightfs'
	install -m 644 docs/man/weightfs.1 '$(DESTDIR)$(PREFIX)/share/man/man1/weightfs.1'
	install -m 644 '$(LIB)' '$(DESTDIR)$(LIBDIR)/libweightfs.a'
	install -m 644 lib/weightfs.h '$(INCLUDE)/weightfs.h'
	install -m 644 $(PUBLIC_HEADERS) '$(INCLUDE)/lib'
	printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$(LIBDIR:$(PREFIX)/%=$${prefix}/%)' \
		'includedir=$(INCLUDEDIR:$(PREFIX)/%=$${prefix}/%)' '' \
		'Name: weightfs' 'Description: Formats of model files: safetensors, npy, index of shards' \
		'Version: $(VERSION)' 'Requires: jansson libxxhash' \
		'Cflags: -I$${includedir} -I$${includedir}/weightfs' \
		'Libs: -L$${libdir} -lweightfs' >'$(PC)'
	chmod 644 '$(PC)'

uninstall: ## remove what install has put there
	rm -f '$(DESTDIR)$(PREFIX)/bin/weightfs' '$(DESTDIR)$(PREFIX)/share/man/man1/weightfs.1' \
		'$(DESTDIR)$(LIBDIR)/libweightfs.a' '$(PC)' '$(INCLUDE)/weightfs.h' \
		$(PUBLIC_HEADERS:%='$(INCLUDE)/%')
	rmdir '$(INCLUDE)/lib' '$(INCLUDE)' 2>/dev/null || :

clean: ## remove what was built (the Python environment stays)
	@sh tools/demo.sh stop
	rm -rf build/demo build/asan build/tsan build/fuzz build/coverage build/cppcheck $(addprefix $(BUILD)/,obj gen tests flags sources \
		weightfs libweightfs.a sample-model bench-worker bench-probe bench-store)

distclean: clean ## remove build/ altogether
	rm -rf build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo '  Variables: BUILD PREFIX DESTDIR CC CFLAGS LDFLAGS DEVELOPER=1 V=1 MODEL PYTEST_ARGS BENCH_ARGS'

# ---- rules ----

# Changes when the compiler or a flag does, so that no object of another
# variant is ever linked.
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD)
	@printf '%s\n' '$(subst ','\'',$(COMPILE) $(LINK) $(PKG_LIBS))' >$@.$$$$ && \
		if cmp -s $@.$$$$ $@; then rm -f $@.$$$$; else mv -f $@.$$$$ $@; fi
FORCE:

# Changes when a source file comes or goes, so that nothing is linked that has
# no source any more.
$(BUILD)/sources: FORCE
	@mkdir -p $(BUILD)
	@printf '%s\n' '$(LIB_SRC) $(PROG_SRC)' >$@.$$$$ && \
		if cmp -s $@.$$$$ $@; then rm -f $@.$$$$; else mv -f $@.$$$$ $@; fi

$(SCHEMA_H): lib/schema.sql Makefile
	$(call say,GEN,$@)mkdir -p $(@D) && { \
		echo '/* Made from lib/schema.sql. */'; \
		echo 'static const char wfs_schema_sql[] = {'; \
		od -An -v -tu1 lib/schema.sql | sed -e 's/[0-9][0-9]*/&,/g'; \
		echo '0};'; } >$@

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	$(call say,CC,$<)mkdir -p $(@D) && $(COMPILE) -MMD -MP -c -o $@ $<

$(call obj,lib/db.c): $(SCHEMA_H)

$(LIB): $(call obj,$(LIB_SRC)) $(BUILD)/sources
	$(call say,AR,$@)rm -f $@ && $(AR) rcs $@ $(filter %.o,$^)

$(BUILD)/weightfs: $(call obj,$(PROG_SRC)) $(LIB)
	$(call say,LD,$@)$(LINK) -o $@ $^ $(PKG_LIBS)

$(BUILD)/sample-model: $(call obj,$(SAMPLE_SRC)) $(LIB)
	$(call say,LD,$@)$(LINK) -o $@ $^ $(PKG_LIBS)

$(BUILD)/tests/test_fuzz: $(call obj,$(FUZZ_SRC))

$(BUILD)/obj/tests/fuzz/libfuzzer-%.o: tests/fuzz/libfuzzer.c $(BUILD)/flags
	$(call say,CC,$@)mkdir -p $(@D) && $(COMPILE) -DWFS_FUZZ_TARGET=wfs_fuzz_$* -MMD -MP -c -o $@ $<

$(FUZZ_BIN): $(BUILD)/fuzz-%: $(BUILD)/obj/tests/fuzz/libfuzzer-%.o $(BUILD)/obj/tests/fuzz/fuzz_%.o \
		$(call obj,$(UNIT_SUPPORT)) $(LIB)
	$(call say,LD,$@)$(LINK) -fsanitize=fuzzer -o $@ $^ $(PKG_LIBS)

$(filter-out %/test_faults,$(UNIT_BIN)): $(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(call obj,$(UNIT_SUPPORT)) $(LIB)
	$(call say,LD,$@)mkdir -p $(@D) && $(LINK) -o $@ $(filter %.o,$^) $(LIB) $(WRAP) -lcmocka $(PKG_LIBS)

ALLOCATIONS := $(addprefix -Wl$(comma)--wrap=,malloc calloc realloc reallocarray)
$(addprefix $(BUILD)/tests/test_,npy safetensors table): private WRAP := $(ALLOCATIONS)
$(BUILD)/tests/test_array: private WRAP := -Wl,--wrap=reallocarray
$(BUILD)/tests/test_listdir: private WRAP := -Wl,--wrap=fdopendir,--wrap=readdir64

# Allocations of lib/ are caught by the linker, system calls by standing before the C library.
$(BUILD)/tests/test_faults: $(call obj,$(FAULT_SRC) $(UNIT_SUPPORT)) $(LIB)
	$(call say,LD,$@)mkdir -p $(@D) && $(LINK) -o $@ $^ $(addprefix -Wl$(comma)--wrap=,malloc calloc realloc \
		reallocarray aligned_alloc free strdup strndup realpath asprintf vasprintf __asprintf_chk __vasprintf_chk \
		fopen64) -lcmocka $(PKG_LIBS)

$(FAULT_LIB): tests/faults/fault.c tests/faults/fault.h $(BUILD)/flags
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(BASE_CPPFLAGS) -std=gnu11 -O2 -g -fPIC -shared $(WARN) \
		-DFAULT_PRELOAD $(if $(SANITIZE),-DFAULT_NO_MALLOC) -o $@ $<

$(VERDICT_BIN): $(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(LIB)
	$(call say,LD,$@)mkdir -p $(@D) && $(LINK) -o $@ $^ $(PKG_LIBS)

$(BUILD)/bench-worker: $(call obj,tests/bench/worker.c)
	$(call say,LD,$@)$(LINK) -o $@ $^ $(PKG_LIBS)

$(BUILD)/bench-probe: $(call obj,tests/bench/probe.c)
	$(call say,LD,$@)$(LINK) -o $@ $^

$(BUILD)/bench-store: $(call obj,tests/bench/build_store.c) $(LIB)
	$(call say,LD,$@)$(LINK) -o $@ $^ $(PKG_LIBS)

-include $(patsubst %.o,%.d,$(call obj,$(ALL_SRC)))
