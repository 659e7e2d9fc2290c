"""Filesystems that people log into, mounted for a test: disks in files, FUSE, ssh and S3 on loopback.

    for kind in KINDS:
        if reason := why_not(kind): skip
        with mounted(kind, top, s3) as mount:      `top` gets everything; s3 only for the kinds that need it
            mount.place                            where it is mounted
            mount.elsewhere("file")                what is behind it: content, None if there is no such file
            mount.cut()                            its connection ends, or its program: then it is mounted anew

    local       tmpfs ext4 overlay vfat exfat      behind it is the mount itself
    a host      bindfs sshfs nfs                   behind it is a directory
    an S3       rclone-off rclone-writes rclone-full s3fs

Everything ends with the `with`. A killed test takes the processes with it, but for exfat's; whoever works in `top` next
detaches what is left (`mounts.detach_below`), which ends that one too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from mounts import contents, detach, detach_below
from programs import wait_for
from s3_server import KEY, S3Server
from s3_server import why_not as why_no_s3

TOOLS = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
LEASH = ("setpriv", "--pdeathsig", "KILL", "--")  # a process of the system ends with the test that started it
DISK = 96 << 20  # bytes of a disk in a file, sparse
LATER = 5.0  # seconds that a server has for its end

Behind = Callable[[], dict[str, bytes]]  # all files behind a mount: content by path


class Ground:
    """What a mount is made of: directories, processes, and their ends."""

    def __init__(self, top: Path, s3: S3Server | None) -> None:
        self.top, self.s3 = top, s3
        self.place, self.behind = top / "mount", top / "behind"
        self._servers: list[subprocess.Popen[bytes]] = []
        self._last: tuple[object, ...] = ()  # the command of the last server
        for directory in (self.place, self.behind):
            directory.mkdir(parents=True)

    def run(self, *command: object) -> str:
        """Run a tool; return its output."""
        words = [str(word) for word in command]
        words[0] = shutil.which(words[0], path=TOOLS) or words[0]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def serve(self, *command: object, until: Callable[[], bool] | None = None) -> None:
        """Start a process that stays, and wait until the place is mounted, or what is waited for."""
        words = [str(word) for word in command]
        words[0] = shutil.which(words[0], path=TOOLS) or words[0]
        self._last = command
        log = self.top / f"{Path(words[0]).name}.log"
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
        with open(log, "wb") as output:
            server = subprocess.Popen(
                [*LEASH, *words], env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._servers.append(server)

        def is_up() -> bool:
            if server.poll() is not None:
                raise OSError(f"{' '.join(words)}: {log.read_text(errors='replace').strip()}")
            return until() if until else os.path.ismount(self.place)

        wait_for(is_up, f"a start of {words[0]}")

    def cut(self, away: float) -> None:
        """Kill the program of the mount, which is mounted anew after so many seconds.

        For 0 seconds only its connection, the `ssh` of sshfs, is killed if it has one now: it makes another one. To be
        called by the thread that has mounted it: the program ends with that.
        """
        server = self._servers[-1]
        if not away and (connections := psutil.Process(server.pid).children()):
            for connection in connections:
                connection.kill()
            return
        server.kill()
        server.wait()
        time.sleep(away)
        detach(self.place)
        self.serve(*self._last)

    def disk(self) -> Path:
        """An empty disk in a file."""
        image = self.top / "disk.img"
        with open(image, "wb") as file:
            file.truncate(DISK)
        return image

    def bucket(self) -> str:
        """A new bucket."""
        assert self.s3
        name = f"bucket-{time.monotonic_ns()}"
        self.s3.client().create_bucket(Bucket=name)
        return name

    def end(self) -> None:
        """Unmount, and end the processes, the youngest first."""
        self.unmount()
        for server in reversed(self._servers):
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(LATER)
            server.kill()
            server.wait()
        detach_below(self.top)

    def unmount(self) -> None:
        """Unmount well where nothing is open, so that what waits in a cache is written; else detach."""
        with contextlib.suppress(OSError):
            self.run("umount", self.place)
        detach(self.place)


@dataclasses.dataclass(frozen=True)
class RealMount:
    """A mounted filesystem."""

    kind: str  # its name here
    place: Path  # where it is mounted
    everything: Behind  # all files as they are behind the mount: content by path
    cut: Callable[[float], None]  # see `Ground`

    def elsewhere(self, path: str) -> bytes | None:
        """Content of a file behind the mount, None if there is no such file."""
        return self.everything().get(path)


def _below(directory: Path) -> Behind:
    return lambda: contents(directory)


def _objects(s3: S3Server, bucket: str) -> Behind:
    return lambda: s3.objects(bucket)


def _tmpfs(ground: Ground) -> Behind:
    ground.run("mount", "-t", "tmpfs", "test", ground.place)
    return _below(ground.place)


def _ext4(ground: Ground) -> Behind:
    image = ground.disk()
    ground.run("mkfs.ext4", "-q", image)
    ground.run("mount", "-o", "loop", image, ground.place)
    return _below(ground.place)


def _vfat(ground: Ground) -> Behind:
    image = ground.disk()
    ground.run("mkfs.vfat", image)
    ground.run("mount", "-t", "vfat", "-o", "loop", image, ground.place)
    return _below(ground.place)


def _exfat(ground: Ground) -> Behind:
    image = ground.disk()
    ground.run("mkfs.exfat", image)
    device = ground.run("losetup", "--find", "--show", image)  # it takes no file
    try:
        ground.run("mount.exfat-fuse", "-o", "allow_other", device, ground.place)
    finally:
        ground.run("losetup", "--detach", device)  # as soon as nothing uses it
    return _below(ground.place)


def _overlay(ground: Ground) -> Behind:
    ground.run("mount", "-t", "tmpfs", "test", ground.behind)  # a directory of a container cannot be an upper one
    for name in ("lower", "upper", "work"):
        (ground.behind / name).mkdir()
    options = ",".join(f"{name}dir={ground.behind / name}" for name in ("lower", "upper", "work"))
    ground.run("mount", "-t", "overlay", "overlay", "-o", options, ground.place)
    return _below(ground.place)


def _bindfs(ground: Ground) -> Behind:
    ground.serve("bindfs", "-f", "-o", "subtype=bindfs", ground.behind, ground.place)  # as `mount -t fuse.bindfs` does
    return _below(ground.behind)


def _nfs(ground: Ground) -> Behind:
    export = f"127.0.0.1:{ground.behind}"
    ground.run("exportfs", "-i", "-o", "rw,no_root_squash,insecure,fsid=17", export)
    try:
        ground.run("mount", "-t", "nfs", "-o", "nfsvers=4,soft,timeo=100", export, ground.place)
    except OSError:
        ground.run("exportfs", "-u", export)
        raise
    return _below(ground.behind)


def _sshfs(ground: Ground) -> Behind:
    keys = ground.top / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        ground.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name)
    os.makedirs("/run/sshd", exist_ok=True)  # sshd wants it, and the package makes it at its start only
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": keys / "host",
        "AuthorizedKeysFile": keys / "user.pub",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
        "StrictModes": "no",
        "Subsystem": "sftp internal-sftp",
        "UsePAM": "no",
    }
    (keys / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    ground.serve("sshd", "-D", "-e", "-f", keys / "sshd_config", until=lambda: _listens(port))
    options = {
        "port": port,
        "IdentityFile": keys / "user",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": keys / "known_hosts",
        "dir_cache": "no",
        "reconnect": "",
        "sshfs_sync": "",  # else a write returns before the host has it, and is lost if it is cut then
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}".rstrip("="))]
    ground.serve("sshfs", "-f", *words, f"root@127.0.0.1:{ground.behind}", ground.place)
    return _below(ground.behind)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


Begin = Callable[[Ground], Behind]  # mounts a filesystem


def _rclone(mode: str) -> Begin:
    def begin(ground: Ground) -> Behind:
        assert ground.s3
        bucket = ground.bucket()
        (ground.top / "rclone.conf").write_text(
            f"[s3]\ntype = s3\nprovider = Other\naccess_key_id = {KEY}\nsecret_access_key = {KEY}\n"
            f"endpoint = {ground.s3.endpoint}\nregion = us-east-1\n"
        )
        ground.serve(
            *("rclone", "mount", "--config", ground.top / "rclone.conf", "--cache-dir", ground.top / "rclone-cache"),
            *("--vfs-cache-mode", mode, "--vfs-write-back", "1s", "--dir-cache-time", "1s"),
            *("--streaming-upload-cutoff", "64Mi"),  # moto refuses what this rclone uploads in parts
            *(f"s3:{bucket}", ground.place),
        )
        return _objects(ground.s3, bucket)

    return begin


def _s3fs(ground: Ground) -> Behind:
    assert ground.s3
    bucket = ground.bucket()
    password = ground.top / "s3fs.password"
    password.touch(mode=0o600)
    password.write_text(f"{KEY}:{KEY}")
    options = f"passwd_file={password},url={ground.s3.endpoint},use_path_request_style,use_cache="
    ground.serve("s3fs", bucket, ground.place, "-f", "-o", options)
    return _objects(ground.s3, bucket)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of mount."""

    begin: Begin  # mounts it
    tools: tuple[str, ...] = ()  # commands that it needs
    filesystem: str = ""  # that the kernel has to know
    needs_s3: bool = False  # whether there has to be an S3


_ALL = {
    "tmpfs": Kind(_tmpfs, filesystem="tmpfs"),
    "ext4": Kind(_ext4, ("mkfs.ext4",), "ext4"),
    "overlay": Kind(_overlay, filesystem="overlay"),
    "vfat": Kind(_vfat, ("mkfs.vfat",), "vfat"),
    "exfat": Kind(_exfat, ("mkfs.exfat", "mount.exfat-fuse"), "fuse"),
    "bindfs": Kind(_bindfs, ("bindfs",), "fuse"),
    "nfs": Kind(_nfs, ("exportfs", "mount.nfs"), "nfsd"),
    "sshfs": Kind(_sshfs, ("sshfs", "sshd", "ssh-keygen"), "fuse"),
    "rclone-off": Kind(_rclone("off"), ("rclone", "fusermount3"), "fuse", needs_s3=True),
    "rclone-writes": Kind(_rclone("writes"), ("rclone", "fusermount3"), "fuse", needs_s3=True),
    "rclone-full": Kind(_rclone("full"), ("rclone", "fusermount3"), "fuse", needs_s3=True),
    "s3fs": Kind(_s3fs, ("s3fs",), "fuse", needs_s3=True),
}
KINDS = tuple(_ALL)


def needs_s3(kind: str) -> bool:
    """Whether a kind needs an S3."""
    return _ALL[kind].needs_s3


def why_not(kind: str) -> str:
    """Why a kind cannot be mounted here, "" if it can."""
    wanted = _ALL[kind]
    if os.geteuid():
        return "only root can mount"
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split()[-1] for line in file}
    if wanted.filesystem not in known:
        return f"the kernel has no {wanted.filesystem}"
    for tool in (*wanted.tools, "mount", "setpriv"):
        if shutil.which(tool, path=TOOLS) is None:
            return f"{tool} is missing: scripts/packages installs it"
    if wanted.filesystem == "fuse" and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse"
    return why_no_s3() if wanted.needs_s3 else ""


@contextlib.contextmanager
def mounted(kind: str, top: Path, s3: S3Server | None = None) -> Iterator[RealMount]:
    """Mount a filesystem."""
    ground = Ground(top, s3)
    try:
        yield RealMount(kind, ground.place, _ALL[kind].begin(ground), ground.cut)
    finally:
        ground.end()
