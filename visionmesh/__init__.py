"""visionmesh: pictures in, objects out. What people import and run; the services are packages of their own."""
