PS1='demo# '
