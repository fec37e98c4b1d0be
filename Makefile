# The verbs that a person types. Each installs what is missing, by package name.

.PHONY: demo test lint build install

# A real OCI image in a real VM, its events and output on the terminal.
demo:
	@tests/demo

# Every test, VM tests included (A3S_BOX_VM=auto|host|lab|skip chooses where they run).
test:
	@tests/run

# What CI checks besides the tests.
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p a3s-box-shim --no-default-features --features fake-vm --all-targets -- -D warnings
	tests/deny
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items

# The shim, the program for its guests and the command for people, in target/release.
build:
	@tests/build
	cargo build --release -p a3s-box

PREFIX ?= /usr/local
install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/a3s-box-shim target/release/a3s-box
	install -D -t $(DESTDIR)$(PREFIX)/lib/a3s-box target/release/a3s-box-guest
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/|$(PREFIX)/|' systemd/a3s-box@.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/a3s-box@.service
