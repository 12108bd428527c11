import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "aigw" / "__init__.py").read_text())[1]

# An index shows this page alone, so what leads to other files of the repository is left out.
PAGE = re.sub(r"^!\[.*?\]\(.*?\)\n+", "", (HERE / "README.md").read_text(), flags=re.MULTILINE)
PAGE = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", PAGE)

setup(
    name="aigw",
    version=VERSION,
    description="A self-hosted, OpenAI-compatible gateway that tries providers in order until one answers",
    long_description=PAGE,
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    entry_points={"console_scripts": ["aigw = aigw.command:main"]},
    python_requires=">=3.10",
    # twisted.plugins by hand: find_packages cannot see it, as it must have no __init__.py of ours.
    packages=[*find_packages(include=["aigw", "aigw.*"]), "twisted.plugins"],
    package_data={"aigw": ["py.typed"], "aigw.admin": ["*.html"]},
    # `pip install -e .` by the folder itself: Twisted finds no plugin through setuptools' finder of packages.
    options={"editable_wheel": {"mode": "compat"}},
    install_requires=[
        # Bounded on both sides where TLS is decided: test_certificates.py has seen the first and the last of them.
        "twisted[tls]>=26.4,<26.11",  # wrapServerTLS
        "treq>=24.9",
        "pyyaml>=6",
        "service-identity>=24.1,<26.2",  # for twisted[tls]; the gateway looks at names itself
        "pyopenssl>=25.2,<26.5",
        "cryptography>=45,<51",  # reads the names in providers' certificates; the demo makes one with it
        "msgspec>=0.18",
        "httptools>=0.6",
        "prometheus-client>=0.21",
    ],
    extras_require={
        "otel": ["opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30"],
        "compression": ["zstandard>=0.22", "brotli>=1.2"],  # bodies of requests; gzip and deflate need nothing
        "store": ["txredisapi>=1.6"],  # limits that several gateways share in a Valkey or Redis
        "bench": ["matplotlib>=3.7"],  # the chart of contrib/bench
        "test": [
            "pytest>=8",
            "pytest-twisted>=1.14",
            "pytest-xdist>=3.7",
            "hypothesis>=6",
            "openai>=1.50",
            "anthropic>=2",
            "langchain-openai>=0.3",
            "opentelemetry-sdk>=1.30",
            "opentelemetry-exporter-otlp-proto-http>=1.30",
            "trustme>=1.1",
            "txredisapi>=1.6",
            "zstandard>=0.22",
            "brotli>=1.2",
            "build>=1.2",
            "setuptools>=65",
            "wheel>=0.40",
            "ruff>=0.6",
            "mypy>=1.11",
            "mypy-zope>=1.0.8",
            "types-PyYAML",
        ],
    },
    classifiers=[
        "Framework :: Twisted",
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Internet :: Proxy Servers",
        "Typing :: Typed",
    ],
)
