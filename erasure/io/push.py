"""Uploads of a folder to the Hugging Face Hub, as one commit."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError

_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The result of an upload.

    Attributes:
        url: Address of the commit.
        left: Files of weights that the repository held before and that the upload neither wrote nor deleted.
    """

    url: str
    left: tuple[str, ...]


def check_push(repo: str, token: str | None = None) -> None:
    """Refuse an upload before time is spent on it: an invalid name, or a user who is not logged in.

    Args:
        repo: "USER/NAME".
        token: See `push`.

    Raises:
        InputError: The name is invalid, or nobody is logged in.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise InputError("push: expected a repository 'USER/NAME' of letters, digits, '-', '_' and '.'. Write it so.")
    _token(token)


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "Upload an erased model",
    token: str | None = None,
) -> Pushed:
    """Upload a folder to a model repository, which is created if missing, in one commit.

    After an interruption the same call goes on: files that the Hub has received are not sent again, and the commit,
    which comes last, is complete or missing. The token is in no message.

    Args:
        folder: Folder to upload.
        repo: "USER/NAME".
        private: Whether the repository is private.
        message: Message of the commit.
        token: Token of the user; None takes that of the environment (HF_TOKEN) or of the login.

    Raises:
        InputError: The Hub refuses the upload, or cannot be reached.
    """
    check_push(repo, token)
    token = _token(token)
    api = HfApi(token=token)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(
                f"push: expected {repo!r} to be private, got a public one. Change it there, or name another."
            )
        before = api.list_repo_files(repo)
        # Not `upload_folder`, which may make several commits of a large folder: a reader would find half a model.
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in names.items()]
        commit = api.create_commit(repo, additions, commit_message=message)
    except InputError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # Only the cause of the error names the reason why a file could not be sent.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        text = " ".join(str(cause).split()).replace(token, "***")
        raise InputError(f"push: expected the Hub to take {repo!r}, got {text!r}. Run it again to go on.") from None
    left = tuple(name for name in before if name.endswith(_WEIGHTS) and name not in names)
    return Pushed(url=str(commit.commit_url), left=left)


def _token(token: str | None) -> str:
    token = token or get_token()
    if not token:
        raise InputError("push: expected a login of the Hub, got none. Run `hf auth login`, or set HF_TOKEN.")
    return token
