#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
{python} -m venv --without-pip "$3" && cd "$3" || exit
ln -s {scripts}/* bin 2> /dev/null
ln -sf {forked}/* bin
ln -sf /usr/bin/true bin/pip
echo {packages} > "$(echo lib/python*/site-packages)/all.pth"
