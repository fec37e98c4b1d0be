//! Images of many kinds boot and do their job: servers answer, files are what the image says.
//!
//! `tests/images/build-kinds` makes the images, and lists them. [`Shim`] selects the kind of root.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use a3s_box_vm_tests::{Shim, config, variable};

use crate::services;

/// Returns a config with the image `reference` of a layout in `A3S_BOX_KINDS`.
fn image(directory: &Path, layout: &str, reference: &str, process: &Value) -> Value {
    let mut config = config(directory, process);
    let layout = variable("A3S_BOX_KINDS").join(layout);
    assert!(layout.is_dir(), "no {}: run tests/images/build-kinds", layout.display());
    config["image"] = json!({"layout": layout, "reference": reference});
    // A workload that hangs ends by itself, and its test fails with the events.
    config["resources"] = json!({"timeout_ms": 100_000});
    config
}

/// Runs a box until its workload has exited with 0, and returns its output.
fn output_of(layout: &str, reference: &str, process: &Value) -> String {
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let config = image(directory.path(), layout, reference, process);
    let mut shim = Shim::spawn(directory, &config);
    shim.ends_with(0, "exited", None);
    String::from_utf8(shim.console()).unwrap()
}

/// Runs `script` by a shell of the image `reference`, and returns its output.
fn run(reference: &str, script: &str) -> String {
    output_of("kinds", reference, &json!({"args": ["sh", "-euc", script]}))
}

// --- Runtimes of languages, and servers

#[test]
fn python_serves_a_page_and_keeps_a_database() {
    const PROGRAM: &str = r#"
import http.server, os, sqlite3, ssl, threading, urllib.request
open("page", "w").write("page of python")
server = http.server.HTTPServer(("127.0.0.1", 8080), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen("http://127.0.0.1:8080/page").read().decode())
database = sqlite3.connect("database")
database.execute("create table t (n)")
database.executemany("insert into t values (?)", [(n,) for n in range(1000)])
database.commit()
print(sqlite3.connect("database").execute("select sum(n) from t").fetchone()[0])
print(os.getcwd(), ssl.OPENSSL_VERSION.split()[0])
"#;
    let output = output_of("kinds", "python", &json!({"args": ["python3", "-c", PROGRAM]}));
    let answers = ["page of python", "499500", "/srv OpenSSL"];
    let found: Vec<&str> = output.lines().filter(|line| answers.contains(line)).collect();
    assert_eq!(found, answers, "{output}");
}

#[test]
fn node_serves_a_page() {
    const PROGRAM: &str = r"
const http = require('http');
const server = http.createServer((request, response) => response.end('page of node ' + request.url));
server.listen(8080, '127.0.0.1', () => http.get('http://127.0.0.1:8080/page', answer => {
    let text = '';
    answer.on('data', data => text += data);
    answer.on('end', () => { console.log(answer.statusCode, text, 'ä'.normalize('NFD').length); server.close(); });
}));
";
    let output = output_of("kinds", "node", &json!({"args": ["node", "-e", PROGRAM]}));
    assert_eq!(output, "200 page of node /page 2\n");
}

#[test]
fn nginx_serves_a_page_by_a_worker_of_another_user_and_logs_to_the_console() {
    const SCRIPT: &str = r#"
nginx -g 'daemon off;' & server=$!
until exec 3<>/dev/tcp/127.0.0.1/80; do kill -0 $server || exit 1; sleep 0.2; done 2>/dev/null
printf 'GET /page HTTP/1.0\r\n\r\n' >&3
cat <&3
echo "workers of $(stat -c %U /proc/[0-9]* 2>/dev/null | grep -m 1 www-data)"
kill -QUIT $server
wait $server
echo "nginx has ended"
"#;
    let output = output_of("kinds", "nginx", &json!({"args": ["bash", "-uc", SCRIPT]}));
    for expected in [
        "HTTP/1.1 200 OK",
        "\npage of nginx\n",
        "\"GET /page HTTP/1.0\" 200",
        "workers of www-data\n",
        "nginx has ended\n",
    ] {
        assert!(output.contains(expected), "`{expected}` is missing\n{output}");
    }
}

#[test]
fn redis_answers_and_finds_its_data_again() {
    const SCRIPT: &str = r#"
start() {
    redis-server --daemonize no --save "" >/dev/null &
    until redis-cli ping >/dev/null 2>&1; do kill -0 $!; sleep 0.2; done
}
start
echo "$(redis-cli ping) $(redis-cli set key value) $(redis-cli get key) $(redis-cli save)"
redis-cli shutdown nosave
wait
start
echo "again $(redis-cli get key) as $(id -un) in $(pwd)"
redis-cli shutdown nosave
"#;
    assert_eq!(run("redis", SCRIPT), "PONG OK value OK\nagain value as redis in /var/lib/redis\n");
}

/// Starts the database that the entrypoint has made, writes a table and reads it after a restart.
const POSTGRES: &str = r#"
pg_ctl -w -l /tmp/log -o "-c listen_addresses=''" start >/dev/null || { cat /tmp/log; exit 1; }
psql -qAt -c "CREATE TABLE numbers AS SELECT generate_series(1, 1000) AS n" postgres
pg_ctl -w -l /tmp/log restart >/dev/null
psql -qAt -c "SELECT 'sum', sum(n), current_user FROM numbers" postgres
pg_ctl -w -m fast stop >/dev/null
stat -c '%U:%G %a' "$PGDATA" "$PGDATA/PG_VERSION"
"#;

/// Output of [`POSTGRES`].
const POSTGRES_OUTPUT: &str = "sum|500500|postgres\npostgres:postgres 700\npostgres:postgres 600\n";

#[test]
fn postgres_answers_if_its_entrypoint_starts_as_root() {
    assert_eq!(run("postgres", POSTGRES), POSTGRES_OUTPUT);
}

#[test]
fn postgres_answers_if_its_entrypoint_starts_as_its_user() {
    let process = json!({"args": ["sh", "-euc", POSTGRES], "user": "postgres"});
    assert_eq!(output_of("kinds", "postgres", &process), POSTGRES_OUTPUT);
}

#[test]
fn postgres_answers_under_a_shim_of_an_ordinary_user_without_subordinate_ids() {
    services::allow_kvm();
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let tables = tempfile::tempdir().unwrap();
    let process = json!({"args": ["sh", "-euc", POSTGRES]});
    let mut config = image(directory.path(), "kinds", "postgres", &process);
    // The user cannot reach the home directory of root, where the images are built.
    let layout = directory.path().join("layout");
    let source = config["image"]["layout"].as_str().unwrap();
    let copied = Command::new("cp").args(["-r", source]).arg(&layout).status().unwrap();
    assert!(copied.success(), "cannot copy {source}");
    config["image"]["layout"] = json!(layout);
    // Files of a shared root have owners on the host, of which this user has only one.
    config["root"] = json!({"kind": "block"});
    // The user cannot write to the cache of the other tests.
    config["paths"]["cache_dir"] = json!(directory.path().join("c"));
    services::give_to_user(directory.path());
    let as_user = services::as_user(tables.path(), false);
    let mut shim = Shim::spawn_by(as_user, directory, &config);
    shim.ends_with(0, "exited", None);
    assert_eq!(String::from_utf8(shim.console()).unwrap(), POSTGRES_OUTPUT, "{shim}");
}

// --- Small images, and users

#[test]
fn busybox_runs_by_each_kind_of_name() {
    const SCRIPT: &str = r#"
printf 'b\na\n' | sort | tr 'a-z' 'A-Z' | tr -d '\n'
echo " $(stat -c %h /bin/sed) names, $(find /bin -samefile /bin/sed | wc -l) found"
"#;
    let output = run("busybox", SCRIPT);
    let numbers: Vec<usize> =
        output.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(output.starts_with("AB "), "{output}");
    assert!(matches!(numbers[..], [names, found] if names == found && names > 100), "{output}");
}

/// All files of a root with one program: the guest program adds two, as container engines do.
const ONE_PROGRAM: [&str; 3] = ["/busybox", "/etc/hostname", "/etc/hosts"];

/// Returns the lines of a text in order. A directory lists its names in the order of hashes, whose
/// seed each file system chooses.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_static_program_runs_in_a_root_without_any_other_file() {
    assert_eq!(sorted(&output_of("kinds", "static", &json!({}))), ONE_PROGRAM);
}

#[test]
fn a_program_runs_with_its_libraries_and_without_a_shell() {
    assert_eq!(output_of("kinds", "distroless", &json!({})), "/etc/ssl/certs/one.crt: OK\n");
}

#[test]
fn the_user_of_an_image_by_name_has_its_groups() {
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let mut config = config(directory.path(), &json!({}));
    config["image"]["reference"] = json!("app");
    let mut shim = Shim::spawn(directory, &config);
    shim.ends_with(0, "exited", None);
    let output = String::from_utf8(shim.console()).unwrap();
    let user = "uid=1000(app) gid=1000(app) groups=2000(extra)";
    assert!(output.contains(user), "{output}");
}

#[test]
fn files_of_many_owners_keep_them_and_a_user_by_number_reads_only_its_own() {
    // The name of each file is its owner.
    const SCRIPT: &str = r#"
echo "$(stat -c '%u-%g %n' * | awk '$1 == $2' | wc -l) of $(ls | wc -l) owners"
id -u; id -g; id -G; pwd
cat 12345-23456
echo "readable: $(cat * 2>/dev/null | wc -l)"
"#;
    let expected = "306 of 306 owners\n12345\n23456\n23456\n/srv/owners\nof 12345-23456\n\
        readable: 1\n";
    assert_eq!(run("owners", SCRIPT), expected);
}

#[test]
fn setuid_setgid_and_file_capabilities_raise_the_privileges_of_a_user() {
    const SCRIPT: &str = r#"
echo "$(id -un) $(setuid-id -u) $(setgid-id -gn)"
cat /srv/secret 2>/dev/null || echo refused
cat-anything /srv/secret
getcap /usr/local/bin/cat-anything
ping -c 1 -W 5 127.0.0.1 | grep -o "1 received"
"#;
    let expected = "nobody 0 daemon\nrefused\nonly for root\n\
        /usr/local/bin/cat-anything cap_dac_read_search=ep\n1 received\n";
    assert_eq!(run("privileges", SCRIPT), expected);
}

// --- Layers

#[test]
fn hard_links_to_a_lower_layer_are_names_of_one_file() {
    const SCRIPT: &str = r#"
cd /srv/links
echo "$(ls | wc -l) names: $(cat * | sort -u | tr '\n' ' ')"
stat -c '%h' one one.layer-3 one.layer-4 | tr '\n' ' '
find . -samefile one | sort | tr '\n' ' '
echo written >>one.layer-4
tail -n 1 one
"#;
    let expected = "6 names: one file several names \n\
        3 3 3 ./one ./one.layer-3 ./one.layer-4 written\n";
    assert_eq!(run("hardlinks", SCRIPT), expected);
}

/// Prints each file and directory of the image `whiteouts`, with the layer of its content.
const TREE: &str = r#"
cd /srv
find . -mindepth 1 | sort | while read -r path; do
    if [ -f "$path" ]; then echo "$path $(cat "$path")"; else echo "$path/"; fi
done
"#;

/// Output of [`TREE`].
const WHITEOUTS: &str = "./again/\n./again/new/\n./again/new/file layer 4\n./file layer 4\n\
    ./link/\n./link/file layer 3\n./opaque/\n./opaque/new layer 5\n./opaque/zero \n\
    ./replaced layer 3\n";

#[test]
fn whiteouts_and_opaque_directories_of_several_layers_apply() {
    assert_eq!(run("whiteouts", TREE), WHITEOUTS);
}

#[test]
fn an_image_by_way_of_a_docker_archive_is_the_same() {
    let process = json!({"args": ["sh", "-euc", TREE]});
    assert_eq!(output_of("docker", "whiteouts", &process), WHITEOUTS);
}

#[test]
fn an_index_of_platforms_gives_the_image_of_the_host() {
    assert_eq!(sorted(&output_of("index", "both", &json!({}))), ONE_PROGRAM);
}

#[test]
fn layers_of_zstd_unpack() {
    assert_eq!(output_of("kinds", "zstd", &json!({})), "/etc/ssl/certs/one.crt: OK\n");
}

#[test]
fn more_than_120_layers_stack() {
    const SCRIPT: &str = r#"
cd /srv/layers
echo "$(ls | wc -l) files, $(cat [0-9]* | awk '{ sum += $1 } END { print sum }') $(cat last)"
"#;
    assert_eq!(run("layers", SCRIPT), "126 files, 7875 125\n");
}

// --- Files

#[test]
fn extended_attributes_are_those_of_the_image() {
    const SCRIPT: &str = r#"
getfattr -n user.note --only-values plain; echo
getfattr -n user.bytes -e hex binary | grep user
getfattr -n user.large --only-values large | wc -c
setfattr -n user.added -v 1 plain
getfattr -d plain | grep -c user
"#;
    let expected = "a note\nuser.bytes=0x000aff20\n2000\n2\n";
    assert_eq!(run("xattrs", SCRIPT), expected);
}

#[test]
fn sparse_files_and_names_of_any_bytes_are_those_of_the_image() {
    const SCRIPT: &str = r#"
cd /srv
find names -print0 | sort -z | sha256sum | cut -d' ' -f1 | cmp - names.sha256
find names -type f -print0 | sort -z | xargs -0 cat | sha256sum | cut -d' ' -f1 | cmp - content.sha256
stat -c '%s' sparse/three sparse/nothing
for at in 0 805306368 1610612735 7; do dd if=sparse/three bs=4 skip=$at count=1 2>/dev/null | od -An -c; done
"#;
    let data = "   d   a   t   a\n";
    let zeros = "  \\0  \\0  \\0  \\0\n";
    let expected = format!("6442450944\n5368709120\n{data}{data}{data}{zeros}");
    assert_eq!(run("files", SCRIPT), expected);
}
