"""`make faults`: what a computer does to a run (kills, full disks, lost servers, clocks that jump), and what it costs."""
