from pynenc.cli import main

main()
