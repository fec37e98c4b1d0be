# The commands for people. Each installs the packages that it needs.

.PHONY: demo test lint build install

# Boots a VM from an OCI image, with its events and its output on the terminal.
demo:
	@tests/demo

# Runs all tests, including VM tests. A3S_BOX_VM=auto|host|lab|skip chooses where these run.
test:
	@tests/run

# Runs the other checks of CI.
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p a3s-box-shim --no-default-features --features fake-vm --all-targets -- -D warnings
	tests/deny
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items

# Builds the shim, the guest program and the command line tool into target/release.
build:
	@tests/build
	cargo build --release -p a3s-box

# The shim is installed without its debug lines, which are ten times its size. They go where gdb and the
# backtraces of Rust look for them.
PREFIX ?= /usr/local
BIN = $(DESTDIR)$(PREFIX)/bin
install: build
	objcopy --only-keep-debug target/release/a3s-box-shim target/release/a3s-box-shim.debug
	install -D -s -t $(BIN) target/release/a3s-box-shim target/release/a3s-box
	install -D -m 644 -t $(BIN)/.debug target/release/a3s-box-shim.debug
	cd target/release && objcopy --add-gnu-debuglink=a3s-box-shim.debug $(BIN)/a3s-box-shim
	install -D -t $(DESTDIR)$(PREFIX)/lib/a3s-box target/release/a3s-box-guest
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/|$(PREFIX)/|' systemd/a3s-box@.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/a3s-box@.service
	sed 's|/usr/local/|$(PREFIX)/|' systemd/network.conf >$(DESTDIR)$(PREFIX)/lib/a3s-box/network.conf
