# A private PostgreSQL cluster in a temporary directory, for scripts that source this file. A cluster of the system is
# never touched.
#
#   trap stop_cluster EXIT     before anything else
#   start_cluster              exports HOMING_TEST_POSTGRES and sets `postmaster`, the server's process id
# shellcheck shell=bash

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# --- packages ---------------------------------------------------------------------------------------------------------

packages_updated=
install_packages() {
  command -v apt-get >/dev/null || die "missing: $*; there is no apt-get here, so install them by other means"
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "missing: $*; install them (neither root nor sudo here)"
    root=(sudo)
  fi
  say "installing $*"
  if [ -z "$packages_updated" ]; then
    "${root[@]}" apt-get update -qq >&2 || say "apt-get update failed; trying with the lists that are there"
    packages_updated=1
  fi
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
    die "could not install $*"
}

# The directory that holds PostgreSQL's initdb and postgres; the newest version if there are several.
postgres_bin() {
  local dir
  while read -r dir; do
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
      printf '%s\n' "$dir"
      return
    fi
  done < <(
    printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin | sort -rV
    dirname "$(command -v initdb || echo /nonexistent/initdb)"
  )
  return 1
}

# --- PostgreSQL -------------------------------------------------------------------------------------------------------

scratch=
cluster_pid=
cluster_user=()

stop_cluster() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -n "$cluster_pid" ]; then
    # Immediate shutdown: nothing in there is worth a checkpoint. The postmaster's own pid, since runuser stays between.
    kill -QUIT "$(head -n 1 "$scratch/data/postmaster.pid" 2>/dev/null || echo "$cluster_pid")" 2>/dev/null || true
    wait "$cluster_pid" 2>/dev/null || true
  fi
  if [ -n "$scratch" ]; then
    rm -rf "$scratch"
  fi
  exit "$status"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_cluster() {
  local bin data port attempt
  bin=$(postgres_bin) || {
    install_packages postgresql
    bin=$(postgres_bin) || die "no initdb and postgres, not even after installing the package postgresql"
  }
  # A short path: the socket's is limited to 107 bytes.
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/homing-pg.XXXXXX")
  data=$scratch/data
  if [ "$(id -u)" -eq 0 ]; then
    # PostgreSQL refuses to run as root.
    id postgres >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin postgres
    chown postgres "$scratch"
    if command -v setpriv >/dev/null; then
      cluster_user=(setpriv --reuid=postgres --regid="$(id -g postgres)" --clear-groups)
    else
      cluster_user=(runuser -u postgres --)
    fi
  fi
  say "starting $("$bin/postgres" --version) in $scratch"
  (cd "$scratch" && "${cluster_user[@]}" "$bin/initdb" --pgdata="$data" --username=postgres --auth=trust \
    --encoding=UTF8 --locale=C >"$scratch/initdb.log" 2>&1) || {
    cat "$scratch/initdb.log" >&2
    die "initdb failed"
  }
  for attempt in 1 2 3 4 5; do
    port=$(free_port)
    (
      cd "$scratch"
      exec "${cluster_user[@]}" "$bin/postgres" -D "$data" -p "$port" -k "$scratch" -h 127.0.0.1 \
        -c fsync=on -c max_connections=300 -c shared_buffers=128MB
    ) >"$scratch/postgres.log" 2>&1 &
    cluster_pid=$!
    if wait_for_cluster "$bin" "$port"; then
      export HOMING_TEST_POSTGRES="postgres://postgres@127.0.0.1:$port"
      # Not cluster_pid where runuser stays between.
      # shellcheck disable=SC2034 # for the scripts that source this
      postmaster=$(head -n 1 "$data/postmaster.pid")
      say "PostgreSQL listens on 127.0.0.1:$port"
      return
    fi
    kill -QUIT "$cluster_pid" 2>/dev/null || true
    wait "$cluster_pid" 2>/dev/null || true
    say "PostgreSQL did not start on port $port (attempt $attempt)"
  done
  cat "$scratch/postgres.log" >&2
  die "PostgreSQL does not start"
}

wait_for_cluster() {
  local i
  for i in $(seq 300); do
    kill -0 "$cluster_pid" 2>/dev/null || return 1
    # pg_isready asks this very cluster: its socket lies in our directory.
    if [ -x "$1/pg_isready" ]; then
      "$1/pg_isready" -q -h "$scratch" -p "$2" && return 0
    elif grep -q 'ready to accept connections' "$scratch/postgres.log"; then
      return 0
    fi
    sleep 0.1
  done
  return 1
}
